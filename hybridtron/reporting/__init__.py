"""The kit of all reports: tables, pages, pictures, numbers as text, progress, and the folder of a report."""
