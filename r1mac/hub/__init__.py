"""Models on the Hub and in the store on disk."""
