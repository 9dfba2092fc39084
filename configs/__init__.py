"""The YAML files that ship with the package: `research fit --config NAME` finds them by name."""
