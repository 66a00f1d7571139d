"""Proposers: who drafts."""
