"""What controllers can ask of an agent, by theme; `leeward_agent.core.Agent` puts them together."""
