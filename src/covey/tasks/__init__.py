"""Prompts with verifiers: what is learned, and on what questions it is measured."""
