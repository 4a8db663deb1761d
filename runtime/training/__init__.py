"""What only training needs: values made again in backward, and the balance of experts."""
