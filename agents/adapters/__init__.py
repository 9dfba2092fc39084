"""Ways into other people's trainers that need token ids; see docs/plug-in.md."""
