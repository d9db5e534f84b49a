"""Token selection in ms-swift: `--external_plugins FILE --callbacks sstoken`; docs/trainers.md."""
