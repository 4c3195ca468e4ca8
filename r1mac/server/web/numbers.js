// Numbers for people.

const GIB = 1024 ** 3;

export const count = (number) => Math.round(number).toLocaleString("en-US");

export const memory = (bytes) => `${(bytes / GIB).toFixed(bytes < 99.95 * GIB ? 1 : 0)} GiB`;

export const rate = (perSecond) => `${perSecond.toFixed(perSecond < 9.95 ? 1 : 0)} tokens/s`;

export function duration(seconds) {
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const plural = (number, word) => `${count(number)} ${word}${Math.round(number) === 1 ? "" : "s"}`;
