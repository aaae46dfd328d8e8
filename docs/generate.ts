/** Writes the pages that are made from the code's tables: `npm run docs`. */
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { errorsPage } from './errors-page.js';
import { optionsPage } from './options-page.js';

// From dist-test/docs.
const write = (name: string, page: string): void =>
  writeFileSync(resolve(import.meta.dirname, '../../docs', name), page);

// First the page that needs no addon.
write('errors.md', errorsPage());
write('options.md', optionsPage());
