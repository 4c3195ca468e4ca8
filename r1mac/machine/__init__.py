"""The Mac seam: nobody else asks for the platform or runs a system command."""
