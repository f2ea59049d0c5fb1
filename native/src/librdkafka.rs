//! The part of librdkafka's interface that is used here, found in the library that confluent_kafka has loaded already.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::sync::OnceLock;

const RTLD_NOW: c_int = 2;
const RTLD_NOLOAD: c_int = 4;
const VERSION_LEAST: c_int = 0x0200_0000; // 2.0: the interface below has not changed since 1.0

/// `rd_kafka_message_t`, whose form is part of the interface.
#[repr(C)]
pub struct Message {
    pub error: c_int,
    pub topic: *mut c_void,
    pub partition: i32,
    pub payload: *const u8,
    pub size: usize,
    pub key: *const u8,
    pub key_size: usize,
    pub offset: i64,
    private: *mut c_void,
}

type OnNew = unsafe extern "C" fn(*mut c_void, *const c_void, *mut c_void, *mut c_char, usize) -> c_int;

extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

macro_rules! interface {
    ($($name:ident: $kind:ty = $symbol:literal;)*) => {
        pub struct Interface { $(pub $name: $kind,)* }

        impl Interface {
            /// SAFETY: the library has these functions, as they are declared.
            unsafe fn of(library: *mut c_void) -> Option<Self> {
                Some(Interface { $($name: {
                    let found = dlsym(library, $symbol.as_ptr());
                    if found.is_null() {
                        return None;
                    }
                    std::mem::transmute::<*mut c_void, $kind>(found)
                },)* })
            }
        }
    };
}

interface! {
    version: unsafe extern "C" fn() -> c_int = c"rd_kafka_version";
    add_on_new: unsafe extern "C" fn(*mut c_void, *const c_char, OnNew, *mut c_void) -> c_int
        = c"rd_kafka_conf_interceptor_add_on_new";
    queue_new: unsafe extern "C" fn(*mut c_void) -> *mut c_void = c"rd_kafka_queue_new";
    queue_destroy: unsafe extern "C" fn(*mut c_void) = c"rd_kafka_queue_destroy";
    queue_of: unsafe extern "C" fn(*mut c_void, *const c_char, i32) -> *mut c_void = c"rd_kafka_queue_get_partition";
    queue_forward: unsafe extern "C" fn(*mut c_void, *mut c_void) = c"rd_kafka_queue_forward";
    consume: unsafe extern "C" fn(*mut c_void, c_int, *mut *mut Message, usize) -> isize = c"rd_kafka_consume_batch_queue";
    destroy: unsafe extern "C" fn(*mut Message) = c"rd_kafka_message_destroy";
    topic_name: unsafe extern "C" fn(*const c_void) -> *const c_char = c"rd_kafka_topic_name";
    timestamp: unsafe extern "C" fn(*const Message, *mut c_int) -> i64 = c"rd_kafka_message_timestamp";
    error_text: unsafe extern "C" fn(*const Message) -> *const c_char = c"rd_kafka_message_errstr";
    headers: unsafe extern "C" fn(*const Message, *mut *mut c_void) -> c_int = c"rd_kafka_message_headers";
    header: unsafe extern "C" fn(*const c_void, usize, *mut *const c_char, *mut *const u8, *mut usize) -> c_int
        = c"rd_kafka_header_get_all";
}

static FOUND: OnceLock<Option<Interface>> = OnceLock::new();

/// Return the interface of the loaded library, None where there is none that could be used.
pub fn interface() -> Option<&'static Interface> {
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Option<Interface> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .find(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with("librdkafka")))?;
    let path = CString::new(path).ok()?;
    // SAFETY: the library is loaded already and stays so; what it is made of is checked by its version.
    unsafe {
        let library = dlopen(path.as_ptr(), RTLD_NOW | RTLD_NOLOAD);
        if library.is_null() {
            return None;
        }
        Interface::of(library).filter(|interface| (interface.version)() >= VERSION_LEAST)
    }
}

/// SAFETY: `text` is null or ends with a zero.
pub unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    CStr::from_ptr(text).to_string_lossy().into_owned()
}
