"""The evaluation: methods x data sets x models, one row a question, and a report."""
