/** CONTRIBUTING.md names files that exist. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { packageRoot } from '../support/index.js';

test('each file that CONTRIBUTING.md names with its directory exists', (t) => {
  const page = readFileSync(join(packageRoot, 'CONTRIBUTING.md'), 'utf8');
  const words = Array.from(page.matchAll(/`([^`\n]+)`/g), ([, code = '']) => code.split(' ')).flat();
  // `lib/cli/NAME.ts` stands for any command; `build/Release` is there once the addon is compiled.
  const files = words.filter((word) => word.includes('/') && !word.includes('NAME') && !word.startsWith('build/'));
  t.true(files.length > 20);
  t.deepEqual(
    files.filter((file) => !existsSync(join(packageRoot, file))),
    [],
  );
});
