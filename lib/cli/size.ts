const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'] as const;

/** Returns a number of bytes for people: `512 bytes`, `1.5 MiB`. */
export function formatSize(bytes: number): string {
  let unit = 0;
  let value = bytes;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
