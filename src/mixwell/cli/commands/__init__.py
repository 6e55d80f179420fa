"""One module per command of `mixwell`; each takes its options as a frozen dataclass."""
