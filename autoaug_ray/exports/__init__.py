"""Policies for other software: plain torchvision, kornia, Albumentations, and parameters."""
