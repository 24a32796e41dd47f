"""What the README claims about speed, measured: `make bench`. Ratios against a peer, in one run, medians."""
