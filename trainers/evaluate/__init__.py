"""Evaluation: methods x data sets x models, a row for each question, and a report.

Read first: command.py, then run.py
May import: agents, envs, trainers.audit, trainers.checkpoint, trainers.evaluate.judges,
    trainers.evaluate.measures, trainers.evaluate.report, trainers.settings
"""
