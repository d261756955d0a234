"""What streamlit runs for each click; see navigation.py."""

from curator.app import navigation

navigation.run()
