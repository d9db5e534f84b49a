"""Token selection in LLaMA-Factory: an `sstoken:` block in the YAML of `llamafactory-cli train`; docs/trainers.md."""
