"""Collections of photos -> captions in shards, resumed after any end; on one machine or on Ray."""
