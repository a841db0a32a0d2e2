"""The process per host: reads deliveries, runs steps, commits what became of them."""
