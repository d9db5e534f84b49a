"""What pages without a script are drawn with: an experiment's, and that of several runs."""
