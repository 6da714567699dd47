"""The contracts: what every kind of component must hold to, checked. `esdllm.testing` has them all."""
