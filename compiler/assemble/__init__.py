"""From a spec to the layer graphs of its programs. Heads build theirs with `builder.Builder`."""
