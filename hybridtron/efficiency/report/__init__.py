"""Tables, pictures and the page of measured efficiency."""
