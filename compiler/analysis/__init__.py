"""What is worked out from a graph alone: costs, and what autograd saves for backward."""
