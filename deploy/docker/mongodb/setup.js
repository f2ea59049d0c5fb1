// Makes the replica set of one member, and its users; finds them made the second time.
const fs = require("node:fs");
const secret = (name) => fs.readFileSync(`/run/secrets/${name}`, "utf8").trim();
const address = `mongodb://root:${secret("mongodb_password")}@mongodb:27017/?authSource=admin&directConnection=true`;
const admin = new Mongo(address).getDB("admin");

if (!admin.hello().setName) {
  admin.runCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: "mongodb:27017" }] } });
}
for (let attempt = 0; !admin.hello().isWritablePrimary; attempt++) {
  if (attempt === 60) throw new Error("the replica set has no primary after a minute");
  sleep(1000);
}

// Gapwatch reads both ends of the oplog, notes its markers in it, and writes documents back when somebody applies a backfill.
if (!admin.getRole("gapwatchMarkers")) {
  admin.createRole({
    role: "gapwatchMarkers",
    privileges: [
      { resource: { cluster: true }, actions: ["appendOplogNote", "serverStatus"] },
      { resource: { db: "local", collection: "oplog.rs" }, actions: ["find", "collStats"] },
    ],
    roles: [],
  });
}
const users = {
  gapwatch: [{ role: "readWrite", db: "shop" }, { role: "gapwatchMarkers", db: "admin" }],
  sink: [{ role: "readWrite", db: "shop" }],
};
for (const [user, roles] of Object.entries(users)) {
  if (!admin.getUser(user)) admin.createUser({ user, pwd: secret(`${user}_password`), roles });
}
