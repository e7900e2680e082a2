"""The commands about this machine and about configs: device, doctor, plan, config."""
