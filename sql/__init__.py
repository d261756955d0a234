"""The queries; they ship as data of the curator package."""
