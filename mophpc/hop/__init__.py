"""Messages between ranks: transports, hops, and the few collectives of a run."""
