"""What every report is made of: the page, the look of its pictures, numbers as readers say them, the folder."""
