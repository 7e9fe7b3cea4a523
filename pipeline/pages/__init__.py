"""Pages of HTML that are complete in themselves: no network, no script, and every text in them escaped."""
