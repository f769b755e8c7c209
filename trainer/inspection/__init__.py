"""What a person looks at after a run: samples, the contact sheet, the report page."""
