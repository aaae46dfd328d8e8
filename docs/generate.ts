/** Writes the pages that are made from the code's tables: `npm run docs`. */
import { readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { cliPage } from './cli-page.js';
import { errorsPage } from './errors-page.js';
import { optionsPage } from './options-page.js';

// From dist-test/docs.
const pathOf = (name: string): string => resolve(import.meta.dirname, '../../docs', name);
const write = (name: string, page: string): void => writeFileSync(pathOf(name), page);

// First the page that needs no addon.
write('errors.md', errorsPage());
write('options.md', optionsPage());
write('cli.md', cliPage(readFileSync(pathOf('cli.md'), 'utf8')));
