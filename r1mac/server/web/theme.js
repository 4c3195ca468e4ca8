// Before the first paint: the theme that was chosen, or the system's.
try {
  const theme = localStorage.getItem("r1mac.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing shows the system's theme.
}
