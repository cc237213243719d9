"""How `onestep.config` reads: YAML to plain values, components against their signatures, shapes, cross-references."""
