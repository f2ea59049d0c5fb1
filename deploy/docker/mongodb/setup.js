// Makes the replica set of one member, and the collections, roles and users of target.json; finds them made the second time.
const fs = require("node:fs");
const secret = (name) => fs.readFileSync(`/run/secrets/${name}`, "utf8").trim();
const wanted = JSON.parse(fs.readFileSync("/opt/target.json", "utf8"));
const address = `mongodb://root:${secret("mongodb_password")}@mongodb:27017/?authSource=admin&directConnection=true`;
const admin = new Mongo(address).getDB("admin");

if (!admin.hello().setName) {
  admin.runCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: "mongodb:27017" }] } });
}
for (let attempt = 0; !admin.hello().isWritablePrimary; attempt++) {
  if (attempt === 60) throw new Error("the replica set has no primary after a minute");
  sleep(1000);
}

// A collection that is not there yet and one that was dropped look alike, and nobody watches what may have been dropped.
for (const [database, collections] of Object.entries(wanted.collections)) {
  const there = admin.getSiblingDB(database).getCollectionNames();
  for (const [name, options] of Object.entries(collections)) {
    if (!there.includes(name)) admin.getSiblingDB(database).createCollection(name, options);
  }
}

// Gapwatch reads both ends of the oplog, notes its markers in it, and writes documents back when somebody applies a backfill.
for (const role of wanted.roles) {
  if (!admin.getRole(role.role)) admin.createRole(role);
}
for (const [user, roles] of Object.entries(wanted.users)) {
  if (!admin.getUser(user)) admin.createUser({ user, pwd: secret(`${user}_password`), roles });
}
