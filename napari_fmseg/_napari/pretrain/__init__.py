"""The Pretrain dock."""
