"""`research plan`: memory and time of a run before it starts.

Read first: command.py
May import: agents, envs, trainers.algorithms, trainers.cli, trainers.settings, trainers.warmstart
"""
