"""Ways into other people's trainers that need token ids; see docs/plug-in.md.

Read first: trl.py
May import: agents.engines, agents.policy, agents.rollout, agents.types, envs
"""
