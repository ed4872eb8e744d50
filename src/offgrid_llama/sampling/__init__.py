"""How the next token is chosen: samplers, chains, the fast sampler, and the engine's step."""
