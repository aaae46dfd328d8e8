/** A mount as `console.log` and `util.inspect` show it, and its path as text and bytes. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { bindSync, mountOverlaySync } from 'overlayfs';
import { layers, mountTest, scratch } from '../support/index.js';

mountTest('target, path, id and state are shown', (t) => {
  const dir = scratch(t);
  const { target, ...options } = layers(dir);
  const shown = (name: string, fields: object) => `${name} ${inspect(fields, { breakLength: Infinity })}`;
  const show = (mount: object) => inspect(mount, { breakLength: Infinity });

  const mounted = mountOverlaySync({ ...options, target });
  const { id } = mounted;
  t.is(show(mounted), shown('OverlayMount', { target, path: target, id, state: 'mounted' }));
  t.is(inspect({ in: { the: { depth: mounted } } }, { depth: 2 }).includes('[OverlayMount]'), true);
  const at = join(dir, 'bound');
  mkdirSync(at);
  const bound = bindSync(target, at);
  t.is(show(bound), shown('Mount', { target: at, path: at, id: bound.id, state: 'mounted' }));
  bound.unmountSync();
  mounted.unmountSync();
  t.is(show(mounted), shown('OverlayMount', { target, path: target, id, state: 'unmounted' }));

  const detached = mountOverlaySync(options);
  const fields = { target: undefined, path: `/proc/self/fd/${detached.fd}`, id: detached.id };
  t.is(show(detached), shown('OverlayMount', { ...fields, state: 'detached' }));
  detached.unmountSync();
  t.regex(show(detached), /state: 'unmounted'/);
});

mountTest('path is text, whatever the target was; pathBytes has each byte', (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  const odd = Buffer.concat([Buffer.from(`${dir}/`), Buffer.from([0xff, 0x41])]);
  mkdirSync(odd);
  for (const [target, path] of [
    [options.target, options.target],
    [Buffer.from(options.target), options.target],
    [odd, `${dir}/\ufffdA`],
  ] as const) {
    const mounted = mountOverlaySync({ ...options, target });
    t.is(mounted.path, path);
    t.deepEqual(mounted.pathBytes, Buffer.from(target));
    mounted.unmountSync();
  }
});
