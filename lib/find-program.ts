/** Finds programs in PATH. */
import { accessSync, constants, statSync } from 'node:fs';
import { join } from 'node:path';

/** Returns the path of an executable file in the absolute directories of PATH, and in these. */
export function findProgram(name: string, ...more: readonly string[]): string | undefined {
  const places = [...(process.env['PATH'] ?? '').split(':').filter((place) => place.startsWith('/')), ...more];
  return places
    .map((place) => join(place, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return statSync(path).isFile();
      } catch {
        return false;
      }
    });
}
