"""`paper.yaml` and `params.yaml` as objects, and what is wrong with them."""
