/** A process that starts a container and waits to be killed. Arguments: the root, the name of the image. */
import { openImage } from 'overlayfs/images';

const [root = '', name = ''] = process.argv.slice(2);
const image = await openImage(name, { root });
const container = await image.start(['sleep', '1000'], { runtime: false, stdio: 'ignore' });
process.send?.(container.process.pid);
