/** Support that the tests share, one idea a file. */

export * from './async.js';
export * from './attributes.js';
export * from './directories.js';
export * from './expectations.js';
export * from './forms.js';
export * from './mount-table.js';
export * from './mount-test.js';
export * from './namespaces.js';
export * from './native.js';
export * from './package-root.js';
export * from './probes.js';
export * from './process.js';
export * from './programs.js';
export * from './random.js';
export * from './scale.js';
export * from './workers.js';
