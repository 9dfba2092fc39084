"""Demonstrations: rollouts to imitate, from gold evidence, a policy or a teacher.

Read first: gold.py
May import: agents, envs
"""
