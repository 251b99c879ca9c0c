"""What several machines agree on through one Redis: who leads, what is killed, how everybody is, the secret.

Imported only where `state.url` names one, by `serving.wiring.state`; the store of endpoints, rollouts and audit is
`serving.state.redis.control_store`.
"""
