"""The report of an ablation: tables, pictures, the page and the text in the terminal."""
