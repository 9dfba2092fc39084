"""Commands for people: pages and lists of runs, shipped configs, bug reports, help for editors.

Read first: page.py
May import: envs, trainers.cli, trainers.overview, trainers.plan, trainers.settings
"""
