"""The commands that train: pretrain, sft, dpo, demo."""
