"""What a person looks at: graphs as text, picture and Python, and the report of a compilation."""
